"""Answers with a shape: a JSON schema, a regular expression, or one of several texts."""
