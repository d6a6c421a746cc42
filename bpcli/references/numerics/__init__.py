"""The numerical analysis behind the references: differences, noise, rounding and their error bounds."""
