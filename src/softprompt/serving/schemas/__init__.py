"""Requests and responses: the names and shapes of OpenAI's API, and what is added to them."""
