"""The network: pixels and tensors. Knows no task, database or HTTP."""
