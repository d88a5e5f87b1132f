// Where blocks lie: numbers of the ring of slots, from the kernels' arguments.

// A segment of the ring, and a slot of it; segment -1 is none of those that the launch reads.
struct Place {
  int segment;
  int slot;
};

METAL_FUNC Place place_of_block(const device int* args, int block) {
  const int after = args[ARG_FIRST_SLOT] + block;
  const int slot = after < args[ARG_SLOTS] ? after : after - args[ARG_SLOTS];
  if (slot < args[ARG_START_0] || slot >= args[ARG_STOP]) return Place{-1, 0};
  const int segment = SEGMENT_OF(slot);
  return Place{segment, slot - args[ARG_START_0 + segment]};
}
