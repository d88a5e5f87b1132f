// Softmax attention over the tiers of a layer and new tokens, for float32 queries: over unencoded
// pieces and encoded blocks.
//
// Each task owns some query rows of one KV head and a span of tiles. It keeps a running softmax
// per row; spans of the same rows are merged at the end (flash-decoding). Encoded tiles are
// attended in the basis of their codec: the queries are rotated once a task, the gathered values
// once a row. A few rows meet them in two passes (see few_coded.h). How work is divided depends on
// shapes and the number of threads alone.
#pragma once

#include "few_coded.h"
#include "pool.h"

namespace ember {

namespace attention {

constexpr int64_t kRowsOfTask = 64 * kProductRows;  // that share the decoding of a tile
constexpr int64_t kMinSpan = 4;          // tiles of a task at least
constexpr int64_t kFewPartials = 256;
// More rows of a KV head than these meet unencoded tiles in floats, measured.
#if defined(__AVX512F__)
constexpr int64_t kFewUnencodedRows = 8;
#else
constexpr int64_t kFewUnencodedRows = 1;
#endif

// out = (rows * factor) rotated into the basis of `form` for KV head `head`.
inline void rotate_into(const BlockForm& form, int64_t head, const float* rows, int64_t count,
                        float factor, std::vector<float>& scratch, float* out) {
    const int64_t dim = form.dim;
    float* signed_rows = out;
    if (form.signs) {
        scratch.resize(size_t(count * dim));
        signed_rows = scratch.data();
    }
    for (int64_t r = 0; r < count; ++r)
        for (int64_t d = 0; d < dim; d += kLanes) {
            const Vector x = load(rows + r * dim + d) * factor;
            store(signed_rows + r * dim + d,
                  form.signs ? x * load(form.signs + head * dim + d) : x);
        }
    if (form.signs) multiply({signed_rows, dim}, count, {form.basis, dim}, dim, dim, {out, dim});
}

// The whole of one call.
class Attention {
  public:
    // keys, values: of the new tokens. q_turned: the queries as they meet pinned tokens.
    Attention(Pool& pool, const TierStep& step, const TierMemory& memory, const Strided& keys,
              const Strided& values, const float* q, const float* q_turned, float* out)
        : pool_(pool), step_(step), memory_(memory), q_(q), q_turned_(q_turned), out_(out),
          scale_(step.scale * kLog2E), plan_(step, memory, keys, values),
          rows_(step.heads / step.kv_heads * step.queries),
          row_tasks_((rows_ + kRowsOfTask - 1) / kRowsOfTask),
          heads_(step.batch * step.kv_heads),
          few_(rows_ <= FewCoded::kMostRows && !plan_.cold.empty()),
          cold_spans_(spans_for(plan_.cold.size(), few_ ? 1 : heads_ * row_tasks_)),
          unencoded_spans_(spans_for(plan_.unencoded.size(), heads_ * row_tasks_)) {}

    void run() {
        thread_local std::vector<float> scratch;
        scratch.resize(size_t(spans() * heads_ * rows_ * (step_.dim + 2)));
        partials_ = scratch.data();
        if (few_) {
            attend_few();
        } else {
            pool_.run(spans() * heads_ * row_tasks_, [&](int64_t task) { attend_task(task); });
        }
        const auto merge_task = [&](int64_t task) {
            const int64_t first = task % row_tasks_ * kRowsOfTask;
            merge(task / row_tasks_, first, std::min(rows_, first + kRowsOfTask) - first);
        };
        // Waking another thread costs more than merging a few rows.
        if (heads_ * rows_ * spans() < kFewPartials)
            for (int64_t task = 0; task < heads_ * row_tasks_; ++task) merge_task(task);
        else
            pool_.run(heads_ * row_tasks_, merge_task);
    }

  private:
    int64_t spans() const { return cold_spans_ + unencoded_spans_; }

    // Of tiles that `beside` tasks each read.
    int64_t spans_for(size_t tiles, int64_t beside) const {
        const int64_t wanted = (4 * pool_.threads() + beside - 1) / beside;
        return tiles ? std::clamp<int64_t>(int64_t(tiles) / kMinSpan, 1, wanted) : 0;
    }

    // A span of some rows; those of encoded tiles come first.
    void attend_task(int64_t task) const {
        const int64_t first = task % row_tasks_ * kRowsOfTask;
        attend_span(task / row_tasks_ / heads_, task / row_tasks_ % heads_, first,
                    std::min(rows_, first + kRowsOfTask) - first);
    }

    // Spans of encoded tiles in two passes, the others beside the first.
    void attend_few() const {
        thread_local std::vector<float> queries, factors;
        std::vector<float> scratch;
        queries.resize(size_t(heads_ * rows_ * step_.dim));
        for (int64_t head = 0; head < heads_; ++head)
            rotate_into(*memory_.key_form, head % step_.kv_heads, q_ + head * rows_ * step_.dim,
                        rows_, scale_, scratch, &queries[head * rows_ * step_.dim]);
        const FewCoded few(step_, memory_, plan_.cold, heads_, rows_, cold_spans_, queries.data());
        pool_.run(cold_spans_ + unencoded_spans_ * heads_, [&](int64_t task) {
            if (task < cold_spans_) return few.score(task);
            attend_task(cold_spans_ * heads_ + task - cold_spans_);
        });
        factors.resize(size_t(heads_ * rows_ * few.lanes()));
        float* const chosen = factors.data();
        for (int64_t head = 0; head < heads_; ++head)
            choose(few, head, chosen + head * rows_ * few.lanes());
        pool_.run(cold_spans_, [&](int64_t span) {
            few.gather(span, chosen,
                       [&](int64_t head) { return partial(span, head, 0, rows_).values; });
        });
    }

    // What encoded tiles weigh, told by the first of their spans; their sums begin as 0.
    void choose(const FewCoded& few, int64_t head, float* factors) const {
        const Rows first = partial(0, head, 0, rows_);
        first.clear();
        for (int64_t span = cold_spans_; span < spans(); ++span) {
            const Rows other = partial(span, head, 0, rows_);
            for (int64_t r = 0; r < rows_; ++r) {
                const float top = std::max(first.tops[r], other.tops[r]);
                first.totals[r] = first.totals[r] * exp2_below(first.tops[r] - top) +
                                  other.totals[r] * exp2_below(other.tops[r] - top);
                first.tops[r] = top;
            }
        }
        few.choose(head, first.tops, first.totals, factors);
        for (int64_t span = 1; span < cold_spans_; ++span) {
            const Rows rows = partial(span, head, 0, rows_);
            rows.clear();
            std::copy(first.tops, first.tops + rows_, rows.tops);
        }
    }

    // What rows [first, first + count) gathered in a span.
    Rows partial(int64_t span, int64_t head, int64_t first, int64_t count) const {
        const int64_t all = spans() * heads_ * rows_, at = (span * heads_ + head) * rows_ + first;
        float* values = partials_ + 2 * all;
        return {count, step_.dim, nullptr, partials_ + at, partials_ + all + at,
                values + at * step_.dim};
    }

    Seen seen(const TileRef& tile, int64_t batch, int64_t row) const {
        const int64_t query = row % step_.queries;
        return seen_in(tile, step_.lowest[batch * step_.lowest_stride + query],
                       step_.position() + query);
    }

    void attend_span(int64_t span, int64_t head, int64_t first, int64_t count) const {
        const bool cold = span < cold_spans_;
        const auto& tiles = cold ? plan_.cold : plan_.unencoded;
        const int64_t part = cold ? span : span - cold_spans_;
        const int64_t parts = cold ? cold_spans_ : unencoded_spans_, all = int64_t(tiles.size());
        const TileRef* from = tiles.data() + all * part / parts;
        const TileRef* to = tiles.data() + all * (part + 1) / parts;
        thread_local std::vector<float> queries, turned, scratch;
        const float* given = q_ + (head * rows_ + first) * step_.dim;
        queries.resize(size_t(count * step_.dim));
        turned.resize(size_t(count * step_.dim));
        Rows rows = partial(span, head, first, count);
        rows.clear();
        rows.queries = queries.data();
        const int64_t kv_head = head % step_.kv_heads;
        if (cold) {
            rotate_into(*memory_.key_form, kv_head, given, count, scale_, scratch,
                        queries.data());
            return attend_cold(rows, head, first, from, to);
        }
        const float* given_turned = q_turned_ + (head * rows_ + first) * step_.dim;
        for (int64_t i = 0; i < count * step_.dim; i += kLanes) {
            store(&queries[i], load(given + i) * scale_);
            store(&turned[i], load(given_turned + i) * scale_);
        }
        attend_unencoded(rows, turned.data(), head, first, from, to);
    }

    // What rows [first, first + count) see of a tile, until the next call.
    const Seen* seen_by(int64_t first, int64_t count, const TileRef& tile, int64_t batch,
                        bool pinned = false) const {
        thread_local std::vector<Seen> all;
        all.resize(size_t(count));
        for (int64_t r = 0; r < count; ++r)
            all[size_t(r)] = pinned ? Seen{0, tile.count} : seen(tile, batch, first + r);
        return all.data();
    }

    void attend_unencoded(const Rows& rows, const float* turned, int64_t head, int64_t first,
                      const TileRef* from, const TileRef* to) const {
        const int64_t batch = head / step_.kv_heads, kv_head = head % step_.kv_heads;
        for (const TileRef* tile = from; tile < to; ++tile) {
            const Piece& piece = plan_.pieces[size_t(tile->source)];
            const Seen* seen = seen_by(first, rows.count, *tile, batch, piece.pinned);
            if (!any_sees(seen, rows.count)) continue;
            Rows seeing = rows;
            if (piece.pinned) seeing.queries = turned;
            attend_pair(*tile, head_of(piece.keys, batch, kv_head),
                        head_of(piece.values, batch, kv_head), seeing, seen);
        }
    }

    // A tile of unencoded keys and values.
    void attend_pair(const TileRef& tile, const HeadTokens& keys, const HeadTokens& values,
                     const Rows& rows, const Seen* seen) const {
        const int64_t dim = step_.dim;
        if (rows_ <= kFewUnencodedRows)
            return attend_tile(UnencodedKeys(keys, tile.first, tile.count, dim),
                               UnencodedValues(values, tile.first, tile.count, dim), tile.count,
                               rows, seen, kFewQueries);
        float *key_tile = scratch_tile(0), *value_tile = scratch_tile(1);
        load_transposed(keys, tile.first, tile.count, dim, key_tile);
        load_tokens(values, tile.first, tile.count, dim, value_tile);
        attend_tile(FloatKeys(key_tile, tile.count, dim), FloatValues(value_tile, tile.count, dim),
                    tile.count, rows, seen);
    }

    // Room for one of two float tiles, for each thread.
    float* scratch_tile(int which) const {
        thread_local std::vector<float> tiles[2];
        tiles[which].resize(size_t(kTile * step_.dim));
        return tiles[which].data();
    }

    void attend_cold(const Rows& rows, int64_t head, int64_t first, const TileRef* from,
                     const TileRef* to) const {
        const BlockForm &key_form = *memory_.key_form, &value_form = *memory_.value_form;
        float *keys = scratch_tile(0), *values = scratch_tile(1);
        const bool in_whole = fits_whole(key_form) && fits_whole(value_form);
        if (in_whole) key_form.all_codes->assign_whole(rows);
        for (const TileRef* tile = from; tile < to; ++tile) {
            const Seen* seen = seen_by(first, rows.count, *tile, head / step_.kv_heads);
            if (!any_sees(seen, rows.count)) continue;
            decode_keys(key_form, memory_.keys[tile->source] + head * key_form.record_bytes,
                        tile->first, tile->count, keys);
            decode_values(value_form, memory_.values[tile->source] + head * value_form.record_bytes,
                          tile->first, tile->count, values);
            if (in_whole)
                key_form.all_codes->attend_whole(keys, values, tile->count, rows, seen);
            else
                attend_tile(FloatKeys(keys, tile->count, step_.dim),
                            FloatValues(values, tile->count, step_.dim), tile->count, rows, seen);
        }
    }

    // The spans [from, to) of some rows, relative to their maximum over all spans.
    void add_spans(int64_t from, int64_t to, int64_t head, const Rows& into, int64_t first) const {
        for (int64_t span = from; span < to; ++span) {
            const Rows part = partial(span, head, first, into.count);
            for (int64_t r = 0; r < into.count; ++r) {
                const float weight = exp2_below(part.tops[r] - into.tops[r]);
                into.totals[r] += weight * part.totals[r];
                float* sums = into.values + r * into.dim;
                const float* more = part.values + r * into.dim;
                for (int64_t d = 0; d < into.dim; d += kLanes)
                    store(sums + d, load(sums + d) + weight * load(more + d));
            }
        }
    }

    void merge(int64_t head, int64_t first, int64_t count) const {
        const int64_t dim = step_.dim;
        thread_local std::vector<float> tops, totals, rotated;
        tops.assign(size_t(count), kUnseen);
        totals.assign(size_t(count), 0.0f);
        for (int64_t span = 0; span < spans(); ++span)
            for (int64_t r = 0; r < count; ++r)
                tops[r] = std::max(tops[r], partial(span, head, first, count).tops[r]);
        float* out = out_ + (head * rows_ + first) * dim;
        const Rows merged{count, dim, nullptr, tops.data(), totals.data(), out};
        std::fill(out, out + count * dim, 0.0f);
        add_spans(0, cold_spans_, head, merged, first);
        if (cold_spans_ && memory_.value_form->signs) rotate_back(head, out, count, rotated);
        add_spans(cold_spans_, spans(), head, merged, first);
        for (int64_t r = 0; r < count; ++r)
            for (int64_t d = 0; d < dim; d += kLanes)
                store(out + r * dim + d, load(out + r * dim + d) / totals[r]);
    }

    void rotate_back(int64_t head, float* rows, int64_t count, std::vector<float>& scratch) const {
        const int64_t dim = step_.dim;
        const float* signs = memory_.value_form->signs + head % step_.kv_heads * dim;
        scratch.assign(rows, rows + count * dim);
        multiply({scratch.data(), dim}, count, {memory_.value_form->inverse, dim}, dim, dim,
                 {rows, dim});
        for (int64_t r = 0; r < count; ++r)
            for (int64_t d = 0; d < dim; d += kLanes)
                store(rows + r * dim + d, load(rows + r * dim + d) * load(signs + d));
    }

    Pool& pool_;
    const TierStep& step_;
    const TierMemory& memory_;
    const float *q_, *q_turned_;
    float* out_;
    const float scale_;
    const Plan plan_;
    const int64_t rows_, row_tasks_, heads_;  // rows: of one KV head; heads: of all batch rows
    const bool few_;  // rows that meet encoded tiles in two passes
    const int64_t cold_spans_, unencoded_spans_;
    float* partials_ = nullptr;
};

}  // namespace attention

}  // namespace ember
