"""A shard process: its main thread owns the device and the step loop; its gRPC threads touch only queues and status."""
