"""The gRPC door: ``fmaas.GenerationService``, reflection and ``grpc.health.v1``."""
