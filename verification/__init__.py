"""Independent checks of the papers: float64 references and, later, the claims themselves."""
