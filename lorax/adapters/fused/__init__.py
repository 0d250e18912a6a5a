"""The fast forms of an adapted layer, each held equal to the readable one."""
