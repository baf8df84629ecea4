//! Images: distribution client, layer store, unpacking, garbage collection.
