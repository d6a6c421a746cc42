"""Derivations on paper: a network's derivatives as formulas, drawn, written in four formats, and checked by numbers."""
