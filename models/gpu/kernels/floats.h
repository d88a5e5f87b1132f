// Numbers as they are: a block is what a lane loads at once.

// Each run is loaded when it is asked for.
template <typename T>
struct Numbers {
  enum { EACH = 16 / int(sizeof(T)), STEP = 128 * EACH, PARTS = 2, APART = 64 * EACH };
  enum { OFFSETS = 0, IN_PLACE = 0 };
  const device uint* own;
  int left;

  METAL_FUNC void load(const thread Planes& planes, uint block, int blocks, int step, uint lane) {
    left = blocks - step * 128 - int(lane);
    own = planes.codes + (block + uint(step * 128) + lane) * 4u;
  }
  METAL_FUNC void advance() {
    own += 256;
    left -= 64;
  }
  METAL_FUNC int column(uint lane, int run) const { return (run * 32 + int(lane)) * EACH; }
  METAL_FUNC void codes(int run, thread float* out) const {
    uint words[4];
    load_inside<4>(own + run * 128, run * 32 < left, words);
    numbers_of<4>(words, out, T(0));
  }
  METAL_FUNC float scale() const { return 1.0f; }
  METAL_FUNC float offset() const { return 0.0f; }
};

typedef Numbers<half> F16;
typedef Numbers<bfloat16_t> BF16;
typedef Numbers<float> F32;
