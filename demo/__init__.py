"""The demo: the main job on real input, told step by step. Run it with ``make demo`` or ``python -m demo``."""
