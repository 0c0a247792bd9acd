"""One call, from texts or pairs of texts to results: what encoders, rerankers and bge-m3 share.

`handle` holds the loaded model, `inputs` checks what a user passed, `call` takes it through tokenizer, queue and
engine, and `embedding`, `scoring` and `m3` say what comes out. `waiting` runs a call for a thread or an event loop.
"""
