"""Code that the classes of both frameworks share: fields, keyword dictionaries, cached models, lists."""
