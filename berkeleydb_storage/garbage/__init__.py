"""Garbage: when and how much to collect (`policy`), how it is found (`cycles`, `marking`) and deleted (`deletion`).

`suspicion` and `packing` put these together, for what hangs on itself nearby and for all of it; `collector` does what
the policy says.
"""
