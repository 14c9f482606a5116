from .arguments import parse_arguments, said_arguments, without_tokens  # noqa: F401

Arguments = tuple
