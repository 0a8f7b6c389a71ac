"""The passes; each module defines one, and is found by being here."""
