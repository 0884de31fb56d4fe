"""gRPC over HTTP/2, made for measuring: thin, with callbacks, and one time stamp for each read from the socket.

It knows nothing of the messages' content. The load generator's workers use its client side, the null server the other.
docs/architecture.md says why grpc.aio would not do.
"""
