"""Requests and answers as types: validation, documentation and job building all come from these."""
