"""Formulas written a second time, slowly and without the library, from their papers."""
