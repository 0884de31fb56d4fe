"""The front-end process: public gRPC and HTTP, validation, tokenizing, detokenizing. asyncio, no torch."""
