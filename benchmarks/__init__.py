"""What the engine costs, in one table: `python -m benchmarks`.

Every figure stands beside a raw baseline that was measured in the same run, in turns with it, so that a change of the
machine's mood hits both.
"""
