"""Floor 0: composing, checking and freezing the configuration; torch is never imported here."""
