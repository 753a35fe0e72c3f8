"""How convolution algorithms are judged: checked against one oracle, measured fairly, recorded."""
