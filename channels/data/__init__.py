"""Texts, rows and generated passages to fit and to measure on."""
