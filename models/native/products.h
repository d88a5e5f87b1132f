// Products of activation rows with weights, spread over the pool: of few rows straight from the
// blocks, of many by panels.
#pragma once

#include <array>

#include "blocks_floats.h"
#include "blocks_simple.h"
#include "few_rows_tables.h"
#include "panels_k.h"
#include "pool.h"

namespace ember {

constexpr int64_t kPanelRows = 256;  // activation rows of one task of a product with many

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
        made_[int(form)] = true;
        if (form == Form::Codes) return quantize();
        make(Form::Codes);
        std::vector<Activation>& rows = rows_[int(form)];
        rows = this->rows_[int(Form::Codes)];
        const int64_t width = padded(columns_);
        std::vector<int8_t>& parts = parts_[int(form)];
        parts.resize(size_t(2 * width) * rows.size());
        pool->run(int64_t(rows.size()), [&](int64_t m) {
            rows[m].high = parts.data() + 2 * m * width;
            rows[m].low = rows[m].high + width;
            split_row(columns_, form, rows[m]);
        });
    }

  private:
    int64_t columns_ = 0;
    std::array<bool, kForms> made_;
    std::array<std::vector<Activation>, kForms> rows_;
    std::array<std::vector<int8_t>, kForms> parts_;
    std::vector<int16_t> codes_;
    std::vector<float> factors_;

    void quantize() {
        std::vector<Activation>& rows = rows_[int(Form::Codes)];
        rows = rows_[int(Form::Floats)];
        const int64_t width = padded(columns_), groups = width / kXGroup;
        codes_.resize(size_t(width) * rows.size());
        factors_.resize(size_t(4 * groups) * rows.size());
        pool->run(int64_t(rows.size()), [&](int64_t m) {
            rows[m].codes = codes_.data() + m * width;
            rows[m].scales = factors_.data() + 4 * m * groups;
            rows[m].sums = rows[m].scales + groups;
            rows[m].halves = rows[m].sums + groups;
            quantize_row(rows[m].numbers, columns_, rows[m]);
        });
    }
};

// Products of up to kPanelRows activation rows with a panel of weight rows.
struct Panelful {
    alignas(64) float values[kPanelRows][kPanel];
};

// A thread's own.
template <typename Panel>
Panel& own_panel() {
    thread_local Panel panel;
    return panel;
}

template <Type kType>
void multiply_panel(const Weight& w, const Activation* x, int64_t rows, int64_t first,
                    Panelful& out) {
    own_panel<typename PanelOf<kType>::Panel>().template multiply<kType>(w, first, x, rows,
                                                                         out.values);
}

// What a type's products read, and what computes them.
struct Products {
    Form few, many;
    void (*strip)(const Weight&, const Activation*, int, int64_t, int64_t, Strip&);
    void (*panel)(const Weight&, const Activation*, int64_t, int64_t, Panelful&);
};

inline Products products_of(Type type) {
    return with_type(type, []<Type kType>() {
        return Products{FewRows<kType>::kForm, PanelOf<kType>::Panel::kForm,
                        &FewRows<kType>::multiply, &multiply_panel<kType>};
    });
}

inline int64_t strips(const Weight& w) { return (w.rows + kStrip - 1) / kStrip; }

// store(i, m, n, value) for every product of activation row m and row n of weights[i].
template <typename Store>
inline void multiply_few(const Weight* const* weights, int count, Quantized& x, int rows,
                         const Store& store) {
    int64_t tasks = 0;
    for (int i = 0; i < count; ++i) {
        tasks += strips(*weights[i]);
        x.make(products_of(weights[i]->type).few);
    }
    pool->run(tasks, [&](int64_t task) {
        int i = 0;
        for (; task >= strips(*weights[i]); ++i) task -= strips(*weights[i]);
        const Weight& w = *weights[i];
        const Products of = products_of(w.type);
        const int64_t first = task * kStrip, width = std::min(kStrip, w.rows - first);
        Strip strip;
        of.strip(w, x.rows(of.few), rows, first, width, strip);
        if (w.added)
            for (int m = 0; m < rows; ++m)
                for (int64_t n = 0; n < width; ++n) strip.values[m][n] += w.added[first + n];
        for (int m = 0; m < rows; ++m)
            for (int64_t n = 0; n < width; ++n) store(i, m, first + n, strip.values[m][n]);
    });
}

// store(m, n, value) for every product of activation row m and row n of a weight.
template <typename Store>
inline void multiply_many(const Weight& w, Quantized& x, int64_t rows, const Store& store) {
    const Products of = products_of(w.type);
    x.make(of.many);
    for (int64_t at = 0; at < rows; at += kPanelRows) {
        const int64_t height = std::min(kPanelRows, rows - at);
        pool->run((w.rows + kPanel - 1) / kPanel, [&](int64_t task) {
            const int64_t first = task * kPanel, width = std::min(kPanel, w.rows - first);
            Panelful out;
            of.panel(w, x.rows(of.many) + at, height, first, out);
            for (int64_t m = 0; m < height; ++m)
                for (int64_t n = 0; n < width; ++n) {
                    const float added = w.added ? w.added[first + n] : 0;
                    store(at + m, first + n, out.values[m][n] + added);
                }
        });
    }
}

// store(i, m, n, value) for every product of activation row m and row n of weights[i].
template <typename Store>
inline void multiply(const Weight* const* weights, int count, Quantized& x, int64_t rows,
                     const Store& store) {
    if (rows <= kFewRows) return multiply_few(weights, count, x, int(rows), store);
    for (int i = 0; i < count; ++i)
        multiply_many(*weights[i], x, rows,
                      [&](int64_t m, int64_t n, float value) { store(i, m, n, value); });
}

// The same for one weight: store(m, n, value).
template <typename Store>
inline void multiply(const Weight& w, Quantized& x, int64_t rows, const Store& store) {
    const Weight* weight = &w;
    multiply(&weight, 1, x, rows,
             [&](int, int64_t m, int64_t n, float value) { store(m, n, value); });
}

}  // namespace ember
