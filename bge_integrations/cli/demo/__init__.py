"""The command `bge demo`: the documentation of Python's standard library, searched through LangChain and LlamaIndex."""
