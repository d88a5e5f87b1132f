// Products of activation rows with weights, spread over the pool: of few rows straight from the
// blocks, of many by panels.
#pragma once

#include <array>
#include <initializer_list>

#include "float_panel.h"
#include "kinds.h"
#include "pool.h"
#include "shares.h"

namespace ember {

// Lent by the library of the caches.
static Pool* pool;

// Activation rows and those of their forms that were asked for; grows to the largest product and
// stays.
class Quantized {
  public:
    // The numbers must stay until the last product.
    void assign(const float* x, int64_t rows, int64_t columns) {
        columns_ = columns;
        rows_[0].resize(size_t(rows));
        for (int64_t m = 0; m < rows; ++m) rows_[0][m].numbers = x + m * columns;
        made_ = {true};
    }

    const Activation* rows(Form form) const { return rows_[int(form)].data(); }

    void make(Form form) {
        if (made_[int(form)]) return;
        const bool has_codes = made_[int(Form::Codes)], has_parts = form != Form::Codes;
        if (!has_codes) place_codes();
        if (has_parts) place_parts(form);
        made_[int(Form::Codes)] = made_[int(form)] = true;
        Activation* const rows = rows_[int(form)].data();
        pool->run(int64_t(rows_[0].size()), [&](int64_t m) {
            if (!has_codes) quantize_row(rows[m].numbers, columns_, rows[m]);
            if (has_parts) split_row(columns_, form, rows[m]);
        });
    }

  private:
    int64_t columns_ = 0;
    std::array<bool, kForms> made_;
    std::array<std::vector<Activation>, kForms> rows_;
    std::array<std::vector<int8_t>, kForms> parts_;
    std::vector<int16_t> codes_;
    std::vector<float> factors_;

    // Room for them.
    void place_codes() {
        std::vector<Activation>& rows = rows_[int(Form::Codes)];
        rows = rows_[int(Form::Floats)];
        const int64_t width = padded(columns_), groups = width / kXGroup;
        codes_.resize(size_t(width) * rows.size());
        factors_.resize(size_t(4 * groups) * rows.size());
        for (size_t m = 0; m < rows.size(); ++m) {
            rows[m].codes = codes_.data() + int64_t(m) * width;
            rows[m].scales = factors_.data() + 4 * int64_t(m) * groups;
            rows[m].sums = rows[m].scales + groups;
            rows[m].halves = rows[m].sums + groups;
        }
    }

    void place_parts(Form form) {
        std::vector<Activation>& rows = rows_[int(form)];
        rows = rows_[int(Form::Codes)];
        const int64_t width = padded(columns_);
        std::vector<int8_t>& parts = parts_[int(form)];
        parts.resize(size_t(2 * width) * rows.size());
        for (size_t m = 0; m < rows.size(); ++m) {
            rows[m].high = parts.data() + 2 * int64_t(m) * width;
            rows[m].low = rows[m].high + width;
        }
    }
};

inline int64_t strips(const Weight& w) { return (w.rows + kStrip - 1) / kStrip; }

// A weight and where its products go: numbers = before + scale * product, or the products where
// nothing was before. [rows, weight rows], which may be the same place.
struct Output {
    const Weight* weight;
    float* numbers;
    const float* before = nullptr;
    float scale = 1;
};

// `width` products of activation row m, with the weight's rows from `first` on.
inline void put(const Output& to, int64_t m, int64_t first, int64_t width, float* products) {
    const Weight& w = *to.weight;
    const int64_t at = m * w.rows + first;
    if (w.added)
        for (int64_t n = 0; n < width; ++n) products[n] += w.added[first + n];
    if (to.before)
        for (int64_t n = 0; n < width; ++n)
            to.numbers[at + n] = to.before[at + n] + to.scale * products[n];
    else
        std::copy_n(products, width, to.numbers + at);
}

inline void multiply_strip(const Output& to, Quantized& x, int64_t rows, int64_t index) {
    const Weight& w = *to.weight;
    const Kind& of = kind_of(w.type);
    const int64_t first = index * kStrip, width = std::min(kStrip, w.rows - first);
    Strip strip;
    // All but the first few find the weights in the cache.
    for (int64_t at = 0; at < rows; at += kFewRows) {
        const int few = int(std::min<int64_t>(kFewRows, rows - at));
        of.strip(w, x.rows(of.few) + at, few, first, width, strip);
        for (int m = 0; m < few; ++m) put(to, at + m, first, width, strip.values[m]);
    }
}

// Call body(piece) for `pieces` of weights that lie behind each other, each once, on all threads.
template <typename Body>
inline void each_piece(int64_t pieces, const Body& body) {
    Shares shares(pieces, pool->threads());
    pool->run(pool->threads(), [&](int64_t own) { shares.work(int(own), body); });
}

inline void multiply_few(std::initializer_list<Output> outputs, Quantized& x, int64_t rows) {
    int64_t all = 0;
    for (const Output& to : outputs) {
        all += strips(*to.weight);
        x.make(kind_of(to.weight->type).few);
    }
    each_piece(all, [&](int64_t index) {
        const Output* to = outputs.begin();
        for (; index >= strips(*to->weight); ++to) index -= strips(*to->weight);
        multiply_strip(*to, x, rows, index);
    });
}

inline void multiply_many(const Output& to, Quantized& x, int64_t rows) {
    const Weight& w = *to.weight;
    const Kind& of = kind_of(w.type);
    x.make(of.many);
    for (int64_t at = 0; at < rows; at += kPanelRows) {
        const int64_t height = std::min(kPanelRows, rows - at);
        each_piece((w.rows + kPanel - 1) / kPanel, [&](int64_t panel) {
            const int64_t first = panel * kPanel, width = std::min(kPanel, w.rows - first);
            Panelful out;
            const Activation* of_rows = x.rows(of.many) + at;
            if (of.panel)
                of.panel(w, of_rows, height, first, out);
            else
                own_panel<FloatPanel>().multiply(of.decode, w, first, of_rows, height, out.values);
            for (int64_t m = 0; m < height; ++m) put(to, at + m, first, width, out.values[m]);
        });
    }
}

// Whose activation rows: of `count` sequences, `length` tokens of each, one sequence after another.
struct Sequences {
    int64_t count, length;

    int64_t rows() const { return count * length; }
};

// All products of activation rows with weights. The tokens of a sequence decide how, so that its
// products are to the last bit the same whatever sequences are beside it.
[[gnu::noinline]] inline void multiply(std::initializer_list<Output> outputs, Quantized& x,
                                       Sequences of) {
    if (of.length <= kFewRows) return multiply_few(outputs, x, of.rows());
    for (const Output& to : outputs) multiply_many(to, x, of.rows());
}

}  // namespace ember
