"""The account that is billed without a database: a rating's state, its parties, tax, credits and wallet."""

import re
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from metering.billing.document import BankAccount, Party, PostalAddress, TaxCategory
from metering.billing.tax import TaxRule, TaxRules
from metering.errors import InvalidValue
from metering.whatif.refusal import NAME_PATTERN, broken_rule, refusal, shown
from metering.whatif.state_file import StateDocument

_AMOUNT = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,12})?")
_COUNTRY = re.compile(r"[A-Z]{2}")
_IBAN = re.compile(r"[A-Z]{2}[0-9]{2}[A-Z0-9]{10,30}")
_IBAN_MODULUS = 97


def _amount(given: object) -> Decimal:
    text = str(given) if isinstance(given, int | Decimal | str) else ""
    if isinstance(given, bool) or _AMOUNT.fullmatch(text) is None:
        raise broken_rule(f"{shown(str(given))} is no amount", 'write it like "12.50" or "-5"')
    return Decimal(text)


def _day(given: object) -> date:
    try:
        return date.fromisoformat(str(given))
    except ValueError as error:
        raise broken_rule(f"{shown(str(given))} is no day", "write it like 2026-01-31") from error


def _matching(pattern: re.Pattern[str], problem: str, fix: str) -> Callable[[object], object]:
    def check(given: object) -> object:
        if isinstance(given, str) and pattern.fullmatch(given) is None:
            raise broken_rule(f"{shown(given)} {problem}", fix)
        return given

    return check


def _iban(given: object) -> object:
    if not isinstance(given, str):
        return given
    bare = given.replace(" ", "").upper()
    is_shaped = _IBAN.fullmatch(bare) is not None
    digits = "".join(str(int(each, 36)) for each in bare[4:] + bare[:4]) if is_shaped else "0"
    if int(digits) % _IBAN_MODULUS != 1:
        raise broken_rule(f"{shown(given)} is no IBAN", "correct a digit that is wrong")
    return bare


_Amount = Annotated[Decimal, BeforeValidator(_amount)]
_Day = Annotated[date, BeforeValidator(_day)]
_Text = Annotated[str, Field(min_length=1, max_length=200, pattern=NAME_PATTERN)]
_Country = Annotated[
    str, BeforeValidator(_matching(_COUNTRY, "is no country", "use two letters of ISO 3166: DE"))
]
_Category = Annotated[TaxCategory, Field(strict=False)]


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, populate_by_name=True)


class AddressDocument(_Document):
    """A postal address."""

    lines: list[_Text] = []
    postcode: _Text | None = None
    city: _Text | None = None
    country: _Country


class BankDocument(_Document):
    """A bank account."""

    iban: Annotated[str, BeforeValidator(_iban)]
    bic: _Text | None = None
    holder: _Text | None = None


class PartyDocument(_Document):
    """A seller or a buyer."""

    name: _Text
    address: AddressDocument
    tax_id: _Text | None = None
    registration_id: _Text | None = None
    email: _Text | None = None

    def party(self) -> Party:
        """Return it as a document names it."""
        address = self.address
        return Party(
            name=self.name,
            address=PostalAddress(
                lines=tuple(address.lines),
                postcode=address.postcode,
                city=address.city,
                country=address.country,
            ),
            tax_id=self.tax_id,
            registration_id=self.registration_id,
            email=self.email,
            bank_account=self._bank_account(),
            reference=self._reference(),
        )

    def _bank_account(self) -> BankAccount | None:
        return None

    def _reference(self) -> str | None:
        return None


class SellerDocument(PartyDocument):
    """Who sends the bill."""

    bank: BankDocument | None = None

    def _bank_account(self) -> BankAccount | None:
        if self.bank is None:
            return None
        return BankAccount(iban=self.bank.iban, bic=self.bank.bic, holder=self.bank.holder)


class BuyerDocument(PartyDocument):
    """Who gets it, and how they are taxed."""

    customer: _Text = "business"
    reference: _Text | None = None

    def _reference(self) -> str | None:
        return self.reference


class TaxRuleDocument(_Document):
    """How supplies to customers of one category in one country are taxed."""

    country: _Country
    customer: _Text = "business"
    category: _Category = TaxCategory.STANDARD
    rate: _Amount = Decimal(0)
    first_day: Annotated[_Day | None, Field(alias="from")] = None
    end_day: Annotated[_Day | None, Field(alias="to")] = None
    reason: _Text | None = None
    reason_code: _Text | None = None


class TaxDocument(_Document):
    """Rates, or the service that finds them."""

    prices_include_tax: bool = False
    rules: list[TaxRuleDocument] = []
    service: _Text | None = None
    timeout_seconds: Annotated[int, Field(ge=1, le=300)] = 10


class AdjustmentDocument(_Document):
    """A credit (below 0) or debit that somebody entered."""

    name: _Text
    amount: _Amount
    reason: _Text | None = None


class EarlierPeriodDocument(_Document):
    """What a closed period, that which holds `day`, owes since it closed."""

    day: _Day
    amount: _Amount
    records: Annotated[int, Field(ge=0)] = 0


class NumberDocument(_Document):
    """What finalises a bill or a note."""

    series: _Text = "1"
    number: _Text
    issued: _Day
    due: _Day | None = None


class AccountDocument(StateDocument):
    """An account file."""

    seller: SellerDocument
    buyer: BuyerDocument
    tax: TaxDocument = TaxDocument()
    wallet: _Amount = Decimal(0)
    adjustments: list[AdjustmentDocument] = Field(default_factory=list)
    earlier_periods: list[EarlierPeriodDocument] = Field(default_factory=list)
    bill: NumberDocument | None = None
    note: NumberDocument | None = None

    def tax_rules(self) -> TaxRules:
        """Return its rules; raise `InvalidValue` naming the path of one that cannot be."""
        rules = []
        for position, each in enumerate(self.tax.rules):
            try:
                rules.append(
                    TaxRule(
                        country=each.country,
                        customer=each.customer,
                        category=each.category,
                        rate=each.rate,
                        first_day=each.first_day,
                        end_day=each.end_day,
                        reason=each.reason,
                        reason_code=each.reason_code,
                    )
                )
            except InvalidValue as error:
                raise InvalidValue(
                    f"tax.rules.{position}.{error.field}", error.problem, error.fix
                ) from error
        try:
            return TaxRules(rules=rules, prices_include_tax=self.tax.prices_include_tax)
        except InvalidValue as error:
            raise InvalidValue(f"tax.{error.field}", error.problem, error.fix) from error


def read_account(given: object) -> AccountDocument:
    """Check an account document; raise `InvalidValue` naming the path, the problem and the fix."""
    try:
        account = AccountDocument.model_validate({} if given is None else given)
    except ValidationError as error:
        raise refusal(error, "account", "see docs/bill.md for what an account may hold") from error
    if account.wallet < 0:
        raise InvalidValue("wallet", f"{account.wallet} is below 0", "use 0 or more")
    if account.tax.service and account.tax.rules:
        raise InvalidValue("tax.rules", "stand beside a service", "use one of them")
    return account
