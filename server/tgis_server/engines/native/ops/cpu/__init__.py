"""The compiled operations for a CPU: a C++ library, how it is built and found, and what calls it."""
