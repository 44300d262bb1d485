"""Anyone's customizations -> what each of them learnt, and what it broke."""
