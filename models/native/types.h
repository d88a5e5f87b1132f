// What makes the functions of a type, once the type's own headers are included.
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
constexpr Kind kind() {
    using Panel = typename PanelOf<kType>::Panel;
    Kind kind{.block_bytes = BlockOf<kType>::kBytes,
              .few = FewRows<kType>::kForm,
              .many = Form::Floats,
              .strip = FewRows<kType>::multiply,
              .panel = nullptr,
              .decode = decode_columns<kType>,
              .are_finite = are_finite_blocks<kType>};
    if constexpr (!std::is_void_v<Panel>) {
        kind.many = Panel::kForm;
        kind.panel = multiply_panel<kType>;
    }
    return kind;
}

}  // namespace ember
