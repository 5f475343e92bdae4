"""The C++ of the CPU path, compiled by `native` where there is a compiler. The entry points are in decoder.cpp."""
