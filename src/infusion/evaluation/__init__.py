"""A base, an adapter, real images of its concept -> every measure of what was learnt and what was broken."""
