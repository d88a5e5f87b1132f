// What is computed with tokens as numbers, for every number of rows: small dense products, and
// tiles that a few query rows read in place; and what is done to numbers before and after a codec's
// own (coding.h).

#include "coding.h"
#include "decode.h"
#include "encode.h"
#include "few_unencoded.h"

namespace ember {

template void multiply_rows<1>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*, Matrix);
template void multiply_rows<2>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*, Matrix);
template void multiply_rows<3>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*, Matrix);
template void multiply_rows<4>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*, Matrix);
template void multiply_rows<5>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*, Matrix);
template void multiply_rows<6>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*, Matrix);

void load_tokens(const HeadTokens& from, int64_t first, int64_t count, int64_t dim,
                        float* out) {
    with_element(from.element, [&](auto element) {
        for (int64_t t = 0; t < count; ++t)
            for (int64_t d = 0; d < dim; d += kLanes)
                store(out + t * dim + d,
                      load_elements<element>(from.data, (first + t) * from.token_stride + d));
    });
}

void load_transposed(const HeadTokens& from, int64_t first, int64_t count, int64_t dim,
                            float* out) {
    with_element(from.element, [&](auto element) {
        for (int64_t t = 0; t < count; t += kLanes)
            for (int64_t d = 0; d < dim; d += kLanes) {
                Vector rows[kLanes] = {};
                for (int64_t i = 0; i < std::min(kLanes, count - t); ++i)
                    rows[i] = load_elements<element>(
                        from.data, (first + t + i) * from.token_stride + d);
                transpose(rows);
                for (int64_t i = 0; i < kLanes; ++i) store(out + (d + i) * kTile + t, rows[i]);
            }
    });
}

void UnencodedKeys::score(const float* queries, int rows, float* scores) const {
    with_element(from_.element, [&](auto element) {
        with_constant<kFewQueries>(
            rows, [&](auto count) { score_rows<element, count>(queries, scores); });
    });
}

void UnencodedValues::gather(const float* weights, int rows, const float* corrections,
                             float* out) const {
    with_element(from_.element, [&](auto element) {
        with_constant<kFewQueries>(rows, [&](auto count) {
            in_halves<kVectorsAtOnce>(dim_ / kLanes, [&](auto vectors, int64_t from) {
                const int64_t d = from * kLanes;
                gather_rows<element, count, vectors>(weights, corrections, d, out + d);
            });
        });
    });
}

inline void encode_plain(const Draft& draft) {
    auto* values = reinterpret_cast<uint16_t*>(draft.record);
    for (int64_t i = 0; i < draft.tokens() * draft.dim(); ++i) values[i] = to_half(draft.y[i]);
}

// As which larger numbers are encoded (kvcache/codecs/base.py).
constexpr float kLargest = float(1ll << 50);

void encode_block(const BlockForm& form, const HeadTokens& from, int64_t first, int64_t head,
                  uint8_t* record) {
    const int64_t dim = form.dim, size = form.tokens * dim;
    std::vector<float> given(static_cast<size_t>(size)), rotated;
    std::vector<uint8_t> codes(static_cast<size_t>(size));
    load_tokens(from, first, form.tokens, dim, given.data());
    for (float& each : given) each = std::min(std::max(each, -kLargest), kLargest);
    if (form.signs) {
        const float* signs = form.signs + head * dim;
        for (int64_t t = 0; t < form.tokens; ++t)
            for (int64_t c = 0; c < dim; c += kLanes)
                store(&given[t * dim + c], load(&given[t * dim + c]) * load(signs + c));
        rotated.resize(size_t(size));
        multiply({given.data(), dim}, form.tokens, {form.basis, dim}, dim, dim,
                 {rotated.data(), dim});
    }
    const Draft draft{form, head, form.signs ? rotated.data() : given.data(), codes.data(), record};
    if (form.family == Family::kUnencoded) return encode_plain(draft);
    (form.coding->encode ? form.coding->encode : form.all_codes->encode)(draft);
    form.coding->pack(form, codes.data(), record);
}

void decode_keys(const BlockForm& form, const uint8_t* record, int64_t first, int64_t count,
                 float* tile) {
    if (form.family == Family::kUnencoded)
        return load_transposed({record, form.dim, Element::kHalf}, first, count, form.dim, tile);
    form.coding->decode_keys(form, record, first, count, tile);
}

void decode_values(const BlockForm& form, const uint8_t* record, int64_t first, int64_t count,
                   float* tile) {
    if (form.family == Family::kUnencoded)
        return load_tokens({record, form.dim, Element::kHalf}, first, count, form.dim, tile);
    form.coding->decode_values(form, record, first, count, tile);
}

void decode_block(const BlockForm& form, const uint8_t* record, int64_t head, float* scratch,
                  float* out) {
    const int64_t dim = form.dim, tokens = form.tokens;
    float* rows = scratch + dim * kTile;
    if (form.role == Role::kValues) {
        decode_values(form, record, 0, tokens, rows);
    } else {
        for (int64_t first = 0; first < tokens; first += kTile) {
            const int64_t count = std::min(kTile, tokens - first);
            decode_keys(form, record, first, count, scratch);
            for (int64_t t = 0; t < count; ++t)
                for (int64_t d = 0; d < dim; ++d)
                    rows[(first + t) * dim + d] = scratch[d * kTile + t];
        }
    }
    if (!form.signs) {
        std::copy(rows, rows + tokens * dim, out);
        return;
    }
    multiply({rows, dim}, tokens, {form.inverse, dim}, dim, dim, {out, dim});
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t d = 0; d < dim; d += kLanes)
            store(out + t * dim + d, load(out + t * dim + d) * load(form.signs + head * dim + d));
}

}  // namespace ember
