"""The front-end process: public gRPC and HTTP APIs, validation, tokenization, detokenization. asyncio, no torch."""
