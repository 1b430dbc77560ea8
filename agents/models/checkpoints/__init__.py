"""What a checkpoint on disk is, beyond a plain causal language model."""
