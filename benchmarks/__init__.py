"""What a call costs, beside other ways to run a coroutine in a background thread: `python -m benchmarks`."""
