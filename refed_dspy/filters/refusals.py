"""A filter of responses that refuse, and of placeholders that were never filled in.

The words of refusals are regular expressions over `normalized` text: English, and thirteen other languages. Where they
come from: the lists of red-teaming code, NVIDIA's garak (`detectors/mitigation.py`) and the prefixes of Zou et al.
(2023, arXiv 2307.15043), for English; for the others, the refusals that public assistants have in their localised
messages; and forms of our own. Lists there are prefixes, and drop "I cannot recommend it enough"; here a form needs its
verb. They are for the first characters of a text: none is searched for beyond.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from refed_dspy.errors import ConfigError, one_line
from refed_dspy.filters.base import Decision, TextFilter
from refed_dspy.records import DataRow
from refed_dspy.text import TEMPLATE_SLOT, UNFILLED_SLOT, any_of, find_placeholder, found, normalized, without_marks

# --- English

_BE = "(?:i am|i'm|we are|we're)"
_ADVERB = r"(?:\w+ly |just |still |also )?"
_AI = any_of(
    r"an? (?:ai|artificial intelligence)(?: language)?(?: (?:model|assistant|chatbot|system|program|agent))*",
    r"an? (?:large |text-based |virtual |digital )*(?:language model|assistant|chatbot)(?: ai)?",
)
_CANNOT = any_of(
    rf"(?:i|we) {_ADVERB}(?:can not|cannot|can't|cant|could not|couldn't|will not|won't)(?: be able to)?",
    "(?:i|we) (?:am unable to|(?:must|have to) decline to|refuse to)",
    rf"{_BE} {_ADVERB}(?:unable to|not (?:able|allowed|permitted|authori[sz]ed|programmed|designed|trained) to)",
    rf"{_BE} {_ADVERB}(?:not (?:equipped|qualified|going|going to be able|in a position) to)",
    rf"{_BE} (?:incapable of|not (?:capable of|comfortable(?: with)?))",
    r"(?:i|we) (?:do not|don't|would not|wouldn't) feel (?:\w+ )?comfortable(?: with)?",
    r"(?:i|we) (?:do not|don't) think (?:i|we)(?: should| can| could|'d be able to)",
    r"(?:i'd|i would) (?:rather not|prefer not to)",
)
_LACK = r"(?:i|we) (?:\w+ly )?(?:(?:don't|do not|cannot|can't) (?:actually |currently |really )?have|lack|have no)"
_LACKED = any_of(
    "access",
    "the (?:ability|capability|capacity|information|necessary)",
    "(?:enough|any|sufficient) (?:information|context|data|detail)",
)
_DO = r"(?!\w+ but\b)(?![^.!?\n]{0,80}\benough\b)(?:\w+ly )?" + any_of(
    "help|assist|provid|answer|fulfil|comply|complet|generat|creat|writ|produc|access|brows|engag|support|advis|predict",
    "respond|shar|giv|offer|process|perform|discuss|participat|promot|recommend|open|continue|determine|view|condon",
    "encourag|endors|facilitat|disclos|reveal|diagnos|listen|watch|search|look up|check|point you|tell you|teach|assum",
    "get into|do (?:that|this|so|it\\b|your)|be (?:part|of)|speculat|comment|role-?play|pretend|verify|confirm",
    "identify|execut|play",
    "(?:see|hear|read) (?:the |any |your )?(?:image|picture|photo|attach|file|link|video|audio|recording|document)",
)
_ASKED = "(?:request|question|task|prompt|query|instruction|topic)"
_SORRY = any_of(
    rf"(?:{_BE} (?:\w+ )?)?(?:sorry|afraid)",
    r"(?:i|we) (?:\w+ )?apologi[sz]e",
    r"(?:my |our )?(?:\w+ )?apologies",
    r"unfortunately|regrettably|i regret|i (?:understand|appreciate|strongly advise)|thank you|thanks",
)
_DECLINE = any_of("decline", "refuse", "pass on", r"pass[.!]?$", "say no")
_UNFIT = "(?:in)?appropriate|unethical|ethical|possible|right|responsible|comfortable|illegal|wrong"
_RULES = r"(?:programming|guidelines|principles|polic(?:y|ies)|training)"

AS_MODEL = re.compile(
    rf"(?<![\"“'])\b(?:as|{_BE}(?: just| only| merely)?) {_AI}"
    r"(?=[ ]?[,.;:(–—-]| i\b| and\b| (?:develop|creat|train)ed\b)[^\n]{0,80}?"
    + any_of(
        _CANNOT, _LACK, r"\bi (?:don't|do not|am not|lack|have no)\b", r"\bi'm not\b", "incapable|unable|without the"
    )
)
"""Speaks as a model that lacks something, anywhere in the opening."""
OF_REQUEST = re.compile(
    any_of(
        rf"{_CANNOT} {_DO}\w*[^.!?\n]{{0,60}}?\b(?:this|that|your|the|such|these|those)(?: \w+)? {_ASKED}",
        rf"{_CANNOT} {_DO}\w*[^.!?\n]{{0,60}}?\b(?:with|on|to)? ?(?:that|this)(?:[.!,]|$)",
        rf"{_CANNOT} {_DO}\w*[.!]?$",
        rf"^(?:this|that|your|the) {_ASKED} can(?:no|')t",
        rf"^(?:this|that|your|the) {_ASKED} (?:(?:may|might|would|could|seems to) )?(?:violate|go(?:es)? against)",
        rf"^(?:this|that|your|the) {_ASKED} is (?:inappropriate|unethical|harmful|not appropriate)",
        rf"(?:that|this|it)(?: is|'s) not something (?:that )?(?:i|we) (?:can|am able to|'m able to) {_DO}",
        rf"(?:against|violat\w+) (?:my|our|the usage) (?:\w+ )?{_RULES}",
        rf"\b(?:my|our) (?:\w+ )?{_RULES} (?:do not|don't|does not|doesn't|prohibit|prevent|forbid)",
    )
)
"""Declines what was asked, in so many words."""
FIRST_PERSON = re.compile(
    "^"
    + any_of(
        rf"{_SORRY}\b[^\n]{{0,90}}?{any_of(f'{_CANNOT} {_DO}', f'{_LACK} {_LACKED}')}",
        rf"{_CANNOT} {_DO}",
        rf"{_LACK} {_LACKED}",
        rf"{_LACK} (?:personal (?:opinion|experience|feeling|belief|preference)|feelings|real-time)",
        rf"(?:i|we) (?:must|(?:would |will )?have to|need to|respectfully) (?:\w+ly )?{_DECLINE}",
        rf"{_BE} going to have to {_DECLINE}",
        rf"(?:{_SORRY}[^\n]{{0,20}}?)?(?:that|this|it)(?: is|'s) (?:not )?something (?:that )?"
        rf"(?:i can\b|{_BE} (?:not )?(?:able|allowed|permitted)|{_CANNOT})",
        rf"it(?: is|'s| would be| isn't| wouldn't be| would not be) (?:not )?(?:{_UNFIT}) for me to",
        r"i (?:do not|don't) know(?: the answer)?(?: to (?:that|this)(?: question)?)?[.!]?$",
    )
)
"""Begins as somebody who declines, which a letter or a story may do, too."""

# --- other languages


class Words(NamedTuple):
    """A language's words, each an alternation: an apology, "I cannot" (or may not, or have no), what is not done, and
    "as a language model" up to what it has not."""

    sorry: str
    cannot: str
    act: str
    as_model: str


LANGUAGES = {
    "de": Words(
        "es tut mir|tut mir|entschuldig|verzeihung|leider|ich bedauer|sorry",
        r"(?:ich (?:kann|darf|werde|bin|möchte)|(?:kann|darf) ich)\b[^.!?\n]{0,60}?\b(?:nicht|kein\w*)\b",
        "helfen|unterstütz|erfüll|beantwort|bearbeit|nachkomm|bereitstell|geben|schreib|erstell|behilflich|ausführ|teilen"
        "|generier|zugreif|sehen|öffnen|in der lage|durchführ|liefern",
        r"als (?:eine? )?(?:ki|künstliche intelligenz|(?:ki-?)?(?:sprachmodell|assistent\w*|modell)|ki-\w+)\b"
        r"[^\n]{0,60}?\b(?:nicht|kein\w*)\b",
    ),
    "fr": Words(
        "(?:je suis )?(?:vraiment |sincèrement )?désolée?|je m'excuse|malheureusement|je regrette|pardon|excusez",
        "je ne (?:peux|pourrai|saurais|suis|vais)(?: malheureusement)?(?: pas)?|il m'est impossible|je refuse"
        "|je n'ai pas accès",
        "aider|répondre|fournir|donner|accéder|traiter|satisfaire|écrire|créer|générer|faire (?:cela|ça)|assister"
        "|partager|effectuer|en mesure|à (?:internet|des|vos|ces)|aux",
        r"en tant qu(?:e |')(?:une? )?(?:grand )?(?:modèle|intelligence artificielle|ia\b|assistante?)[^\n]{0,60}?"
        r"\bje n(?:e |')",
    ),
    "es": Words(
        "lo siento|lamento|lamentablemente|perdón|disculp|desafortunadamente|me temo",
        "no (?:puedo|podré|podría|me es posible|estoy autorizad[oa]|soy capaz|tengo (?:acceso|permitido))",
        "ayud|asisti|proporcion|respond|cumpl|ofrec|dar|acced|gener|escrib|crear|compart|realiz|proces|complet"
        "|hacer(?:lo| eso)|a (?:internet|información|tus)",
        r"como (?:un |una )?(?:modelo de lenguaje|inteligencia artificial|ia\b|asistente)[^\n]{0,60}?"
        r"\bno (?:tengo|puedo|soy)",
    ),
    "it": Words(
        "mi (?:di)?spiace|scusa|scusi|purtroppo|sono spiacente",
        "non (?:posso|riesco|sono in grado|mi è possibile|ho accesso)",
        "aiutar|assister|rispond|forni|soddisf|scriver|crear|generar|acceder|condivider|dart|darl|eseguir|completar"
        "|elaborar|a internet|ai tuoi",
        r"(?:in quanto|come) (?:un |una |un')?(?:intelligenza artificiale|ia\b|modello|assistente)[^\n]{0,60}?"
        r"\bnon (?:ho|posso|sono)",
    ),
    "pt": Words(
        "(?:me )?desculp|sinto muito|lamento|infelizmente|peço desculpa",
        "não (?:posso|consigo|poderei|estou autorizad[oa]|sou capaz|tenho (?:acesso|permissão))",
        "ajud|auxili|fornec|respond|atend|oferec|compartilh|criar|gerar|escrev|dar\\b|acess|realiz|process|cumpr"
        "|à internet|a informaç",
        r"como (?:um |uma )?(?:modelo de linguagem|inteligência artificial|ia\b|assistente)[^\n]{0,60}?"
        r"\bnão (?:tenho|posso|sou)",
    ),
    "nl": Words(
        "het spijt m|sorry|helaas|mijn excuses",
        r"(?:ik (?:kan|mag|ben|zal)|(?:kan|mag) ik)\b[^.!?\n]{0,60}?\b(?:niet|geen)\b",
        "help|verstrek|geven|beantwoord|voldoen|bieden|schrijv|maken|uitvoer|delen|in staat|genereer|genereren|verwerk",
        r"als (?:een )?(?:ai|kunstmatige intelligentie|(?:ai-?)?(?:taalmodel|assistent)|ai-\w+)\b[^\n]{0,60}?"
        r"\b(?:niet|geen)\b",
    ),
    "pl": Words(
        "przykro mi|(?:bardzo )?przepraszam|niestety|wybacz",
        "nie (?:mogę|jestem w stanie|potrafię|wolno mi|mam (?:dostępu|możliwości))",
        "pomóc|pomag|udziel|odpowiedz|spełni|podać|napisać|zrealiz|wykona|kontynuow|udostępni|dostarcz|wygenerow|do ",
        r"jako (?:model|sztuczna inteligencja|ai\b|si\b|asystent)[^\n]{0,60}?\bnie (?:mam|mogę|jestem|posiadam)",
    ),
    "ru": Words(
        "извин|к сожалению|прости|мне (?:очень )?жаль|прошу прощения|приношу извинения",
        "я не (?:могу|смогу|в состоянии|буду|имею (?:доступа|возможности|права))",
        "помо[чг]|предостав|ответ|отвеч|выполн|дать|напис|созда|обсужд|подел|сгенерир|сделать это|к ",
        r"(?:как|будучи|я) (?:большая |большой )?(?:языков\w+ модель\w*|искусственн\w+ интеллект\w*|ии\b|нейросеть\w*)"
        r"[^\n]{0,60}?\b(?:не (?:имею|могу|обладаю|способ)|у меня нет)",
    ),
    "zh": Words(
        "(?:我)?(?:很|非常|十分)?(?:抱歉|对不起|對不起|不好意思|遗憾|遺憾)",
        "(?:我[^。！？\\n]{0,6}?|(?<=[,，。、！ ]))(?:无法|不能|不可以|没有办法|没办法|無法|不便|不会|沒辦法)",
        "帮|协助|理解|回答|提供|满足|完成|处理|执行|生成|编写|撰写|访问|讨论|支持|幫|協助|滿足|處理|執行|編寫|撰寫|訪問|討論",
        "(?:作为|作為|身为|身為|我是)(?:一[个個名款种種位])?(?:人工智能|人工智慧|ai|大?型?语言模型|大?型?語言模型|智能助手)"
        r"[^\n]{0,40}?(?:没有|沒有|无法|無法|不能|不具)",
    ),
    "ja": Words(
        "(?:大変)?(?:申し訳|すみません|すいません|ごめん|恐れ入り|恐縮|残念ながら)",
        "(?:その|この|ご|それ|これ|私|お|あなた|違法)",
        r"(?:でき|出来|いたし|致し|し|答え|応え|応じ|られ)(?:ません|かね)",
        r"(?:私は)?(?:大規模)?(?:ai|人工知能|言語モデル)[^。\n]{0,14}?(?:として|なので|であるため|ですので|のため)"
        r"[^\n]{0,60}?ません",
    ),
    "ko": Words(
        "(?:정말 |대단히 )?(?:죄송|미안|유감|안타깝)",
        "",
        "(?:도와드릴|도움을 드릴|답변(?:해 ?드릴|할|드릴)|제공(?:해 ?드릴|할)|응할|처리할|수행할|알려 ?드릴)"
        " 수(?:는|가)? 없",
        r"(?:저는 )?(?:ai|인공지능|언어 모델)[^\n]{0,15}?(?:로서|이기 때문에|이므로|이라|라서)[^\n]{0,60}?(?:없|않|못)",
    ),
    "tr": Words(
        "üzgünüm|maalesef|ne yazık ki|özür dilerim|kusura bakma",
        "",
        r"(?:yardımcı olam|yardım edem|cevap verem|yanıt verem|cevaplayam|yanıtlayam|sağlayam|paylaşam|bunu yapam"
        r"|yerine getirem|erişem|bilgi verem)\w*",
        r"bir (?:yapay zek[aâ]|dil modeli|ai\b)[^\n]{0,30}?olarak[^\n]{0,60}?(?:\byok|değil|m[ae]m\b|m[ae]z\b)",
    ),
    "ar": Words(
        "(?:أنا )?(?:عذر|آسف|أعتذر|للأسف|معذرة)",
        "(?:لا (?:أستطيع|يمكنني|أقدر)|لن أتمكن|لست قادر)",
        "مساعد|الإجابة|إجابة|تقديم|الرد|تلبية|توفير|كتابة|تنفيذ|الوصول",
        r"(?:بصفتي|كوني|كنموذج|باعتباري)[^\n]{0,40}?(?:ذكاء|نموذج|لغوي|لغة)[^\n]{0,60}?(?:لا |ليس )",
    ),
}
"""By ISO 639 code."""

NEED_SORRY = ("ja", "ko", "tr", "ar")
"""Where "I" is left out, or an answer may well begin with "I cannot": only an apology makes it a refusal."""

OTHER_AS_MODEL = re.compile(
    any_of(*(rf"(?:(?:{words.sorry})[^\n]{{0,60}}?)?(?:{words.as_model})" for words in LANGUAGES.values()))
)
OTHER_FIRST_PERSON = re.compile(
    any_of(
        *(
            rf"(?:(?:{words.sorry})[^\n]{{0,60}}?){'' if code in NEED_SORRY else '?'}(?:{words.cannot})"
            rf"[^.!?。！？\n]{{0,60}}?(?:{words.act})"
            for code, words in LANGUAGES.items()
        )
    )
)
"""As AS_MODEL and FIRST_PERSON, at the beginning of a text."""

# --- instructions that ask for such words

ASKS_FOR_SUCH_WORDS = re.compile(
    r"\b(?:declin|refus|reject|apolog|sorry|turn(?:ing|s)? (?:\w+ ){0,3}down|say(?:ing)? no\b|excuse|unable|can't|"
    r"cannot|translat|paraphras|rewrit|rephras|quote)"
)
ASKS_FOR_VOICE = re.compile(
    r"\b(?:letter|e-?mail|message|reply|dialog|conversation|role-?play|story|poem|song|lyric|script|speech|"
    r"monologue|note to|diary|sentence|example|slogan|tagline|line (?:for|of)|caption|status|announcement|"
    r"imagine|pretend|act as|first person|perspective|character)"
)
OTHERS_ASK_FOR_IT = re.compile(
    "absag|ablehn|entschuldig|übersetz|brief|nachricht|dialog|gespräch|geschichte|gedicht|"
    "refus|déclin|excus|tradui|lettre|courriel|message|histoire|poème|chanson|"
    "rechaz|disculp|traduc|carta|correo|mensaje|diálogo|historia|cuento|poema|canción|"
    "rifiut|scus|tradur|lettera|messaggio|dialogo|storia|poesia|canzone|"
    "recus|desculp|traduz|mensagem|história|conto|"
    "weiger|afwijz|excuus|vertaal|bericht|gesprek|verhaal|gedicht|"
    "odm[oó]w|przepro|przetłumacz|list do|wiadomość|opowiadanie|wiersz|"
    "отказ|извин|перевед|письм|сообщени|диалог|рассказ|стих|песн|"
    "拒绝|婉拒|道歉|翻译|邮件|写信|对话|故事|诗|拒絕|翻譯|郵件|對話|"
    "断り|断る|お詫び|謝罪|翻訳|手紙|メール|会話|物語|"
    "거절|사과|번역|편지|메일|대화|이야기|çevir|mektup|e-posta|hikaye|özür|ترجم|رسالة|اعتذار|قصة"
)


_OPENING = 300
"""Characters at the beginning of a response in which refusals are looked for."""
_mention = re.compile(r"\A[\"“„«'‘][^\"“”„«»\n]{1,200}[\"”“»](?=[^\n]*\w)")
"""A quotation that the response begins with and goes on after: words spoken of, not said."""

_about_slots = re.compile(
    r"template|placeholder|bracket|variable|\btags?\b|html|token|regex|format|slot|blank|latex|syntax"
)


class Refusals(TextFilter):
    """Drops a row whose response refuses ("refusal"), or whose instruction or response was never filled in
    ("placeholder"); `detail` is the words that matched.

    Refusals are looked for in the first 300 characters; whether one counts depends on how certain it is. "As an AI
    language model, I cannot ..." always counts. "I can't help with that request" counts unless the instruction is about
    declining, apologising or rewording a text. "I'm sorry, but I cannot provide ..." counts unless the instruction is
    about that, or asks for a text in somebody's voice: a letter, a story, a sentence. A quotation at the beginning does
    not count. English and `LANGUAGES` are recognised; `extra` adds phrases, looked for in the
    same 300 characters whatever their case.

    Raises:
        ConfigError: an extra phrase without a letter in it.
    """

    name = "refusals"
    of_instruction = False

    def __init__(self, extra: Sequence[str] = ()) -> None:
        self._extra = [normalized(phrase) for phrase in extra]
        if not all(any(map(str.isalpha, phrase)) for phrase in self._extra):
            raise ConfigError("refusals: an extra phrase has no letters; give the words of a refusal or remove it")

    def check(self, row: DataRow) -> Decision:
        instruction = normalized(row.instruction)
        speaks_of_slots = found(_about_slots, instruction) is not None
        unfilled = find_placeholder(row.instruction)
        if not unfilled and not speaks_of_slots and (match := found(UNFILLED_SLOT, instruction)):
            unfilled = one_line(match.group(), 80)
        if not unfilled:
            unfilled = find_placeholder(row.response)
            if speaks_of_slots and TEMPLATE_SLOT.match(without_marks(normalized(row.response))):
                unfilled = ""  # {name} is the answer to a question about templates
        if unfilled:
            return Decision(False, "placeholder", detail=unfilled)
        refusal = self._refusal(instruction, without_marks(_mention.sub("", normalized(row.response))))
        return Decision(False, "refusal", detail=refusal) if refusal else Decision(True)

    def _refusal(self, instruction: str, response: str) -> str:
        """The words with which `response` refuses; empty where it does not."""
        opening = response[:_OPENING]
        patterns = [AS_MODEL.search, OTHER_AS_MODEL.match]
        if not found(ASKS_FOR_SUCH_WORDS, instruction):
            patterns.append(OF_REQUEST.search)
            if not found(ASKS_FOR_VOICE, instruction):
                patterns.append(FIRST_PERSON.search)
                if not found(OTHERS_ASK_FOR_IT, instruction):
                    patterns.append(OTHER_FIRST_PERSON.match)
        for find in patterns:
            if match := find(opening):
                return one_line(match.group(), 120)
        return next((phrase for phrase in self._extra if phrase in opening), "")
