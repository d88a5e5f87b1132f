// What makes the functions of a type. For the files that are compiled for some types each, once the
// types' own headers are included.
#pragma once

#include "finite.h"
#include "kinds.h"

namespace ember {

template <Type kType>
void multiply_panel(const Weight& w, const Activation* x, int64_t rows, int64_t first,
                    Panelful& out) {
    own_panel<typename PanelOf<kType>::Panel>().template multiply<kType>(w, first, x, rows,
                                                                         out.values);
}

template <Type kType>
Kind kind() {
    return {.block_bytes = BlockOf<kType>::kBytes,
            .few = FewRows<kType>::kForm,
            .many = PanelOf<kType>::Panel::kForm,
            .strip = FewRows<kType>::multiply,
            .panel = multiply_panel<kType>,
            .decode = decode_columns<kType>,
            .are_finite = are_finite_blocks<kType>};
}

}  // namespace ember
