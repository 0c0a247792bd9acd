"""Measures this package beside the adapters and runtimes of today: on the same weights and texts, in turns, in one run.

| module | what it does |
|---|---|
| `__main__` | the command `python -m benchmarks` |
| `suite`, `profiles` | what is measured, in which order and how long |
| `shapes`, `texts` | models of the true sizes, and texts of several lengths |
| `entrants`, `contenders`, `onnx_models`, `lineup` | who takes part, and whether all of them give the same vectors |
| `peers`, `elsewhere` | those whose packages need an environment of their own, and the process that runs them |
| `throughput`, `latency`, `cold`, `memory`, `limit` | one part each |
| `gpu`, `gpu_models` | `python -m benchmarks.gpu`: queries and shares on a GPU; rerankers, bge-m3 and decoders there |
| `shares` | on a GPU: what is left of the products' speed in the engine, and of the engine's in a whole call |
| `fresh` | runs a contender in a process of its own |
| `stats`, `noise`, `machine` | the arithmetic, whether the machine was quiet enough, and what machine it was |
| `isolation` | keeps a run away from the hub and from the user's cache |
| `tables`, `table_parts`, `charts` | draw what was measured, from the JSON alone |
| `retrieval`, `searches`, `retrieval_report` | the command `python -m benchmarks.retrieval`: who finds the answers |
| `training`, `trainers` | the command `python -m benchmarks.training`: speed and memory of fine-tuning |
| `reranker_training` | the command of that name: makes a cross-encoder of MiniLM, and judges it |
| `topics` | customers' messages and their topics (Banking77), for `reranker_training` |
| `training_inputs`, `step_clock` | the rows and the model that all train, and what times the steps |
| `questions`, `docstrings` | the 216 labelled questions, and the documentation that answers them |
| `m3` | the command `python -m benchmarks.m3`: bge-m3's three outputs together |
| `m3_stand_in` | what takes bge-m3's place where it can't be had |
| `fusion` | one ranking out of several |
"""
