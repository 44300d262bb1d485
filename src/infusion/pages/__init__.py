"""Figures and images -> tables, plots and single HTML pages."""
