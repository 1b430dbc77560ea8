"""Decoders of transformers of many kinds: their parts, their masks, and what each can do."""
