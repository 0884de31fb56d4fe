"""The front-end process: public gRPC and HTTP APIs, validation, tokenization and detokenization, without torch."""
