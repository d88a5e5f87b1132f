// Eight numbers of a lane on their way to memory.

template <typename T>
METAL_FUNC void store_run(const thread float* from, device T* to) {
  uint words[4];
  UNROLL for (int i = 0; i < 4; i++) {
    const uint low = uint(as_type<ushort>(T(from[2 * i])));
    words[i] = low | uint(as_type<ushort>(T(from[2 * i + 1]))) << 16;
  }
  *(device uint4*)to = uint4(words[0], words[1], words[2], words[3]);
}

METAL_FUNC void store_run(const thread float* from, device float* to) {
  UNROLL for (int i = 0; i < 8; i += 4) {
    *(device float4*)(to + i) = float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
  }
}
