"""One call, from texts or pairs of texts to results: the common code of encoders, rerankers and bge-m3.

`handle` holds the loaded model, `inputs` checks the user's input, and `call` takes it through tokenizer, queue and
engine. `embedding`, `scoring` and `m3` collect the results. `waiting` runs a call for a thread or an event loop.
"""
