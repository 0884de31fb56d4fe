"""What crosses process borders: plain messages, their protobuf codecs, the Session link and the plan channel."""
