"""What the records say: statistics and verdicts by ``bench.noise``, computed once, before anybody renders
them.
"""
