"""An engine behind OpenAI's HTTP interface, and a page to talk to it. No torch at import."""
