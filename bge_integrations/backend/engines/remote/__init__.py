"""The engine that asks a server.

`connection` sends requests, `routes` knows the formats of servers, and `engine` computes batches with both.
"""
