// How a simdgroup reads a row of blocks, which lie in planes (drawn in models/gpu/blocks.py).
//
// It goes in steps of STEP columns. Of a step a lane holds PARTS parts of two runs of EACH neighbouring
// columns: run 0 or 1 of the first part begins at column(lane, run) of the step, and that of each
// next part, to which `advance` goes, APART behind it.
//     weight = scale * code + offset      offset is 0 where OFFSETS is
// A code stays in its byte of a word where IN_PLACE is: number i is 2^(8 (i % 4)) times too large,
// and one mask is all that it takes.
//
// Every byte is loaded by one lane, beside its neighbours', and shuffled to those that need it: all
// lanes come to `load` and to `codes` together. Past the end of the row all of it is 0.
// load: `block` is the number of the row's first block, `blocks` how many it has.

struct Planes {
  const device uint* codes;
  const device uint* high;    // bits of codes above those, where they lie apart
  const device uint* signs;
  const device uint* scales;  // of parts of a block
  const device uint* whole;   // scales of whole blocks
  const device uint* grid;    // runs that codes are numbers of, of all blocks
};

METAL_FUNC Planes planes_of(const device uint* blocks, const device int* args) {
  return Planes{blocks, blocks + uint(args[ARG_HIGH]), blocks + uint(args[ARG_SIGNS]),
      blocks + uint(args[ARG_SCALES]), blocks + uint(args[ARG_WHOLE]),
      blocks + uint(args[ARG_GRID])};
}

METAL_FUNC float half_at(const device uint* plane, uint index) {
  return float(((const device half*)plane)[index]);
}

// COUNT words, one, two or fours of them; zeros where they are not inside.
template <int COUNT>
METAL_FUNC void load_inside(const device uint* from, bool inside, thread uint* to) {
  enum { WIDE = COUNT < 4 ? COUNT : 4 };
  UNROLL for (int i = 0; i < COUNT; i++) to[i] = 0u;
  if (inside) {
    UNROLL for (int i = 0; i < COUNT; i += WIDE) load_words<WIDE>(from + i, to + i);
  }
}

// Word `lane` of those that the BLOCKS blocks of a step have in a plane, WORDS each.
template <int BLOCKS, int WORDS>
METAL_FUNC uint word_of_step(const device uint* plane, uint block, int blocks, int step, uint lane) {
  const int left = min(blocks - step * BLOCKS, int(BLOCKS));
  return int(lane) < left * WORDS ? plane[(block + uint(step * BLOCKS)) * uint(WORDS) + lane] : 0u;
}

// Half `lane` of a plane that has one for each block.
template <int BLOCKS>
METAL_FUNC float half_of_step(const device uint* plane, uint block, int blocks, int step, uint lane) {
  const int left = min(blocks - step * BLOCKS, int(BLOCKS));
  return int(lane) < left ? half_at(plane, block + uint(step * BLOCKS) + lane) : 0.0f;
}

METAL_FUNC float signed_byte(uint word) { return float(int(word << 24) >> 24); }

// Of COUNT words the next bits.
template <int COUNT>
METAL_FUNC void shift_words(thread uint* words, int bits) {
  UNROLL for (int i = 0; i < COUNT; i++) words[i] = words[i] >> bits;
}

// Code i of a run, of whose word the mask leaves it where it is.
METAL_FUNC float code_in_place(uint word, int i, uint mask) {
  return float(word & mask << (i % 4 * 8));
}

// The numbers of words; the last argument only names their type.
template <int WORDS>
METAL_FUNC void numbers_of(const thread uint* words, thread float* out, float) {
  UNROLL for (int i = 0; i < WORDS; i++) out[i] = as_type<float>(words[i]);
}

template <int WORDS, typename T>
METAL_FUNC void numbers_of(const thread uint* words, thread float* out, T) {
  UNROLL for (int i = 0; i < WORDS; i++) {
    const float2 pair = both_halves(words[i], T(0));
    out[2 * i] = pair.x;
    out[2 * i + 1] = pair.y;
  }
}

// What brings number i of a run back from its place.
template <class TYPE>
METAL_FUNC float unit_of(int i) {
  return TYPE::IN_PLACE ? as_type<float>(uint(127 - i % 4 * 8) << 23) : 1.0f;
}

// The weights of a run.
template <class TYPE>
METAL_FUNC void weights_of(const thread TYPE& held, int run, thread float* out) {
  held.codes(run, out);
  UNROLL for (int i = 0; i < TYPE::EACH; i++) {
    out[i] *= held.scale() * unit_of<TYPE>(i);
    if (TYPE::OFFSETS) out[i] += held.offset();
  }
}
