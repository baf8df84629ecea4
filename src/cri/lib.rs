//! The CRI gRPC services: parse, call the engine, render.
