"""Communication between processes: messages and their protobuf codec, the Session, the plan and control channels."""
