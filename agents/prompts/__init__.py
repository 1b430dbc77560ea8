"""Words to token ids: templates, tokenizer, chat template, contexts."""
